-- Every unit of time, before 1970 and after.
select timestamp_s '1969-12-31 23:59:59' as s, timestamp_ms '1969-12-31 23:59:59.001' as ms,
       timestamp '1969-12-31 23:59:59.000001' as us, timestamptz '2024-02-29 12:00:00.5+05:30' as tz,
       date '0001-01-01' as first_day, date '9999-12-31' as last_day, time '23:59:59.999' as clock
