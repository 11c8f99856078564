select [1, null, 3] as l, {'a': 'ü', 'b': [true]} as s, map {'k': 1.5} as m, 'it''s' as "quoted ""name""", [] = [] as e
