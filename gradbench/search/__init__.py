"""Which trials a pair of a sweep makes: all points of a design, or those that a search asks for."""
