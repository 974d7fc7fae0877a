"""How a sum of products is computed: which way serves it, and each of the ways."""
