"""Versions under their writers: when is a file finished?"""
