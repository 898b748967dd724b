"""From a record to answers, and what theory says beside them."""
