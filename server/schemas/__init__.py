"""The JSON clients send and get, in OpenAI's shapes.

Owns names, types and ranges; knows no engine. Invariant: nothing here depends on the settings or
on the checkpoint; limits that do are checked where the request is built.
"""
