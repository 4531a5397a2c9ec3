"""The one description of a message between server and site: plans, replies, and how both are checked.

A site answers every plan once. Both sides validate what they receive: it crosses a trust boundary. Arrays are packed
into one payload because Flower pays per array.
"""
