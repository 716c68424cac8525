from .dataset import Dataset as Dataset, Split as Split, load_data as load_data
