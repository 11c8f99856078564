"""Flight SQL on the wire: messages, tickets, catalog results, SqlInfo. Pure: no server, no engine, no clock."""
