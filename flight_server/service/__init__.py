"""Arrow Flight SQL over gRPC: dispatch, streams, errors on the wire. The only room of the server that knows Flight."""
