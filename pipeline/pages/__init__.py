"""HTML pages of one file each: layout, thumbnails and plots; knows neither models nor scores.

Every page can be read offline and asks nobody for anything: pictures are data URLs, all that comes
from data is escaped, and a content security policy forbids every request and every script but ours.
"""
