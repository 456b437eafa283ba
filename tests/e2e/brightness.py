"""Image scorers for tests: how bright an image is, and one that fails for a part of the images."""


class Brightness:
    """Mean of an image's pixels in [0, 1]; with `fail_below`, images darker than that make it raise."""

    def __init__(self, fail_below: float = 0.0):
        self.fail_below = fail_below

    def score(self, samples):
        """One number a sample."""
        values = [float(sample.image.mean()) / 255 for sample in samples]
        if any(value < self.fail_below for value in values):
            raise RuntimeError("too dark to be scored")
        return values
