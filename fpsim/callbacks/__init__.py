"""Callbacks for training loops of others: `callbacks.trainer` for transformers, `callbacks.lightning` for Lightning."""
