select 0.1::decimal(18, 8) + 0.2::decimal(18, 8) as sum, 123456789.12345678::decimal(18, 8) as price,
       1000000000000000::decimal(28, 8) as quantity, -0.00000001::decimal(18, 8) as tiny
