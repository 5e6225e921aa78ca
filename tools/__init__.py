"""What a developer runs beside the product: generating code, locking dependencies."""
