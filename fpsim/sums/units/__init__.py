"""Sums of products as hardware units make them."""
