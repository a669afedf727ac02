"""Items as text: train, judge, recommend, also what nobody has taken yet."""
