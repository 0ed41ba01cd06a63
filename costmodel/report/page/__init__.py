"""The page: one HTML file that computes predictions in the browser with programs made from this package's formulas."""
