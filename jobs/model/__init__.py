"""Model folders: made of checkpoints, and described.

importing.py     a checkpoint of others, or of a run -> a model folder
own_run.py       a checkpoint that `asap train` wrote, with the settings of its run
facts.py         what is known of a model, from the files of its folder
"""
