"""Faults made on purpose: kills, broken disks, attacks; real processes wherever one can be had."""
