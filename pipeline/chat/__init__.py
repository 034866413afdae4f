"""Talking to a trained model: in the terminal, on a page, and as a server for other programs.

`loading` makes a `ChatModel` (`model`) of an export; a `Session` (`session`) is one conversation
with one. All that runs a model goes over its `Desk` (`desk`): one answer at a time, in order, a
bounded number waiting. `limits` is what is asked of whatever comes from outside. `page`, `api` and
`terminal` put sessions before people and programs; `server` serves the first two.
"""
