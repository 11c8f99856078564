-- A null of each kind, between values.
select * from (values (1, 'a', 1.5, true, date '2024-01-01', [1], {'k': 1}), (null, null, null, null, null, null, null),
                      (2, '', 0.0, false, date '1969-12-31', [null], {'k': null})) t(i, s, d, b, day, l, st)
