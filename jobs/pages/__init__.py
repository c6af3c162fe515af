"""Self-contained HTML pages, and SVG plots.

page.py        render a page, with its style sheets and pictures embedded
plot.py        plots as SVG: axes, lines, bars and points
templates/     the templates and style sheets of the pages
"""
