"""Is the derivative the derivative of the loss? Float64, one primitive at a time."""
