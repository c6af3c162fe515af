"""The stages of the pipeline: a manifest row becomes a result row.

read.py           the source: tasks that read rows of the manifest and prepare them
prepare.py        picture fetched, decoded and resized
texts.py          texts as the model reads them, on their way to the detectors
describe.py       DescriptionStage: the actor that adds captions or explanations
captioners.py     the captioner: an engine, or a file of captions
detect.py         Detector: the actor that runs the model
write.py          ResultWriter: the actor that writes files of results
row_shape.py      the shape of the rows that a job writes
result_rows.py    the schema of result rows
progress.py       the actor that counts finished rows
"""
