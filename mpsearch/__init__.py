"""mpsearch."""
