"""How torch's operations reach their rules: contexts, modes, hooks and switches."""
