from tinyseq.draw.picture import Picture
from tinyseq.draw.reading import read


def draw(what, *, names=None, limit=300, seconds=20.0):
    return Picture(read([what], names, limit), seconds)
