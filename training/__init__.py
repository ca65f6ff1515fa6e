"""The recipe of the embedded voice: text, a teacher's speech, codec, talker, export, evaluation.

Nothing of the server imports it. The networks are the reference package's own, so that what is
trained is what the released format describes.
"""
