"""The demo: real pictures, real sentences and a real teacher, all from installed packages; what `make demo` runs.

pictures, sentences   what the packages hold
classes               the classes that the held-out pictures are sorted into, and the prompts that name them
imagenet              networks whose weights packages carry: the teacher's own, and what students begin with
alignment             the linear map that makes two ready-made encoders one teacher
teacher               that teacher, plugged in through `python:` as a user's own would be
data                  writes all of it as a user's files would look
steps, run            the pipeline's own commands, in order; two students train side by side
gallery, page, report what came out: report.json and report.html
"""
