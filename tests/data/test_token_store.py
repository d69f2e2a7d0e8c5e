def test_x(store, wordpiece, corpus_txt):
    import os
    print(sorted(os.listdir(store)), wordpiece.size, os.path.getsize(corpus_txt))
