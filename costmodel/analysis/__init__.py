"""Views of the formulas themselves: explanation, leading terms, crossovers, comparison, formula pages."""
