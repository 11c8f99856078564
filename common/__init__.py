"""What every K2 service must agree on. Imports nothing of ours."""
