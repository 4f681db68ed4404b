"""What is timed: ratios of interleaved runs in one process, never asserted on a clock in the test suite."""
