"""Detection behind the API, in the order in which a pair passes it.

service.py          decode the picture, then detect
in_flight.py        requests that a shutdown waits for
decoder_pool.py     the processes that decode pictures
decoder_process.py  what one of them runs
detector_client.py  the detector replicas, called by their handle
batcher.py          pairs become batches
detector.py         the model in a replica
"""
