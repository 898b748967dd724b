"""From a record to answers, with theory beside them."""
