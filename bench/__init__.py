"""What each claim about speed is measured with: ratios to a floor within one run, never a test."""
