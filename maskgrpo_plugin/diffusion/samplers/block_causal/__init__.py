"""Block-causal decoding: blocks left to right, with an exact cache of those that are finished."""
