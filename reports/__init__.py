"""What it looked like: tables for the terminal, comparisons, figures and one page."""
