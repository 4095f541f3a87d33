"""Training, from a recipe to a repo on the Hub. It stays at home: no checkpoint carries it, and no score imports it."""
