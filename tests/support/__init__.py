"""What the tests of several rooms share: records, and fakes that keep the contract of the real thing."""
