"""Parallel calls: call, batch, pool, gather and stream."""
