"""The ttrpc protocol alone: messages, frames, server, client. Ground floor; knows no service.

Imports nothing outside the standard library, for the pod VM runs it too.
"""
