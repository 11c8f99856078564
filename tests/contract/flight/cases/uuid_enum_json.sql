select '0123456789abcdef0123456789abcdef'::uuid as id, 'sell'::enum('buy', 'sell') as side, '{"a": [1, null]}'::json as doc, map {'a': [1, 2]} as m
