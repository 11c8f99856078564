select 0.1::float as f32, 0.1::double as f64, 'nan'::double as nan, 'inf'::float as inf, '-inf'::double as ninf, -0.0::double = 0.0 as zero
