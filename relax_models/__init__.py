"""Decoder language models for the compiler: configs, presets, Relax definitions and their weights."""
