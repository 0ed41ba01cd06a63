"""What a person or a program reads of a prediction: tables, JSON, CSV, Markdown, figures."""
