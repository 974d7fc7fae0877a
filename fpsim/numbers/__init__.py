"""What numbers there are, and how they are rounded and encoded."""
