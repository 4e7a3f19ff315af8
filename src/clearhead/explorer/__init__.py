"""Ways to look: pictures of what `derivation` and `seeing` compute. Each is imported only where it is shown."""
