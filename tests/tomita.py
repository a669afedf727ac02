"""Tomita's languages as automata that can be compared."""

from stepscan.analyze.automata import Automaton
from stepscan.tasks.tomita import LANGUAGES

TOMITA = {number: Automaton(*language) for number, language in LANGUAGES.items()}
