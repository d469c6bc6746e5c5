"""JMIX envelopes: written, read and checked, kept, and delivered once.

From a journal of received objects (`journal`, grouped by `assembly`) `envelope` builds a ZIP with `zipstream`, and
`packer` from instances while they arrive; `store` keeps it; `outbox` remembers where it must go until it has arrived.
`reader` judges what strangers upload.
"""
