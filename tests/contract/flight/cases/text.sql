select '' as empty, 'ü 漢 🦆' as letters, 'it''s "quoted"' as quotes, E'a\n\tb\\' as controls, repeat('x', 3) as x, '\x00\xFF'::blob as bytes, ''::blob as no_bytes
