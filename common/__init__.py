"""What every K2 service must agree on: schemas, codec, offsets, errors, settings, telemetry. Imports nothing of ours."""
