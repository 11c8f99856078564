-- The ends of every integer type, with and without sign.
select (-128)::tinyint as i8, (-32768)::smallint as i16, (-2147483648)::integer as i32, (-9223372036854775808)::bigint as i64,
       255::utinyint as u8, 65535::usmallint as u16, 4294967295::uinteger as u32, 18446744073709551615::ubigint as u64
